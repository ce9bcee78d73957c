"""The served fit in, K items for every user out, as Parquet parts on local disk."""
