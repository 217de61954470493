"""Makes and verifies WebDataset shards with an index: python -m data_pipelines.shards."""
