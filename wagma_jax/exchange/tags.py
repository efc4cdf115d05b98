"""The tags of all messages under ``wagma_jax.exchange``, by the communicator that they travel on."""

# of the models' communicator
SWAP = 7
AHEAD = 8
PAIR = 9
PUSH = 10
# of the communicator for control messages
MAIL = 11
CLOCK = 13
# of communicators that are the user's: unlikely to be used by others, and every MPI allows tags up to 32767
START = 32_501  # wagma_jax/leaving.py has the next one
