"""Files and processes: records, configs, checkpoints, logs and ranks. No neural networks."""
