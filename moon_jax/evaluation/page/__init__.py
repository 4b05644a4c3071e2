"""The report page: results, figures and pictures of an evaluation in one HTML file.

Reads from front to back: `results_file` and `predictions` (what is read) -> `html`, `methods`, `lines`, `dots`,
`radar`, `table` (what is drawn) -> `overview` and `*_section` (what is shown) -> `writer` (the file), with `page.css`
and `page.js`.
"""

from moon_jax.evaluation.page.embedding_map import Embedded
from moon_jax.evaluation.page.writer import NAME, check_runs, write

__all__ = ["NAME", "Embedded", "check_runs", "write"]
