"""What an evaluation asks, and of which data; the model is given beside it.

    python -m moon_jax.evaluate --config=configs/eval.py:catalogue --model=runs/demo --workdir=runs/eval_demo
    python -m moon_jax.evaluate --config=configs/eval.py:shop --config.data.path=DATA --model=runs/shop --workdir=W

Argument: mbe | m5product | shop | catalogue (default). All ask all five tasks; the split into seen and unseen products
is that of training with the same config.data.unseen_share.
"""

from moon_jax.config import defaults


def _mbe(c):
    """The paper's test set: every row a query, its gallery the positives and hard negatives (paper 4)."""
    c.data.format = "mbe"
    c.data.unseen_share = 0.0
    c.data.on_error = "skip"
    c.eval.gallery = "test"
    c.eval.expected_queries = 416_926


def _m5product(c):
    """Queries that are listings: right is what has the query's label, and each is classified by it (Tables 2, 3)."""
    c.data.format = "m5product"
    c.data.unseen_share = 1.0
    c.data.on_error = "skip"
    c.eval.ks = (10, 100, 500)


def _shop(c):
    """Real photos in our own layout."""
    c.data.path = "../shared/data"
    c.data.parts = ("grocery", "luma")


def _catalogue(c):
    """The drawn catalogue of configs/demo.py."""
    c.data.format = "catalogue"
    c.data.catalogue_products = 2800


_BENCHMARKS = {"mbe": _mbe, "m5product": _m5product, "shop": _shop, "catalogue": _catalogue}


def get_config(arg: str = "catalogue"):
    if arg not in _BENCHMARKS:
        raise ValueError(f"the config's argument is {arg!r}; it must be one of {', '.join(_BENCHMARKS)}")
    c = defaults()
    c.name = f"eval_{arg}"
    c.eval.tasks = ("retrieval", "classification", "attributes")
    c.eval.max_queries = 0
    c.eval.color_histogram = arg in ("shop", "catalogue")
    _BENCHMARKS[arg](c)
    c.eval.metric = "seen/image/MRR"  # chooses nothing here; it is right whatever the ks
    return c
