"""A campaign as a folder of Parquet, larger than memory if need be.

::

    output/_simulation.json                     all arguments
    output/split=train/part-000000.parquet …    as many rows as ``partition_rows`` says
    output/split=val/…, output/split=test/…
    output/_config/data/simulated.yaml          what the columns mean; there when all partitions are

Partitions are independent, so that several processes write them, in any order, with the same result.
:func:`lightning_budget.campaign.writing.job.simulate` does it all.
"""
