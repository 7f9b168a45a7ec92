"""The training run around an agent: settings, factory, replicas, results."""
