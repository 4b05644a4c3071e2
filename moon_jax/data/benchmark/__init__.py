"""From a log of purchases to a benchmark: cleaning, split without leaks, sampling, hard negatives (paper 4.1, 4.2).

Tables are Ibis expressions, which DuckDB runs in this process and Spark on a cluster. What decides which rows come out
is written so that both agree: md5 of texts, plain Python functions of one row, sums and minima; no engine's own hash,
no order of rows, no collation, no time zone.
"""
