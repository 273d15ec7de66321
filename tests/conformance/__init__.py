"""Does "Sandboxed Python" behave as an ordinary ipykernel does, whoever drives it?"""
