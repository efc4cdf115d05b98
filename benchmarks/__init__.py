"""What the README claims, and how to measure it again: one module or package per question."""
