"""Data sets that others published: what is known of them, checks of a file against that, and typed Parquet of it.

Descriptions are data (:mod:`.description`), one file a data set; :mod:`.prepare` reads, checks and writes;
:mod:`.splits` and :mod:`.hybrid` repeat published splits, :mod:`.mt7` generates Criteo-MT7. Nothing is downloaded, and
no data is part of the package. ``scripts/prepare_data.py`` is the command line.
"""
