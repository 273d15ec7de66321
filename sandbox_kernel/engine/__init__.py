"""One Linux concept a module: what a container is made of.

Nothing here knows of Jupyter, ZeroMQ or traitlets. The concept modules do not import each other;
:mod:`.container` (the parent's side) and :mod:`.init` (pid 1's side) compose them.
"""
