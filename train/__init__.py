"""Training scripts: data, loops and reports over the strategies; a model's architecture is in ``models``."""
