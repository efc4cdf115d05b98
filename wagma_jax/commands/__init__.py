"""The `wagma` command. Nothing here imports JAX before a command needs it, so that all of them start at once."""
