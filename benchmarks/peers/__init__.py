"""One averaging beside that of other libraries: its time, and what the others wait while one worker is late.

    python -m benchmarks.peers

The peers have an environment of their own in ``build/peers``, which the first call installs from the package index;
torch alone takes some gigabytes. A peer that cannot be installed, or does not run, is listed with the reason.
``adapters`` says how each is called, and ``worker`` is one of the processes that do: both run in that environment, and
import nothing else of the project.
"""
