"""Look inside: what happened in a run, drawn for people.

- `diagram_page`: the end of a simulated run as a sequence diagram, in one HTML file.
"""

from oarlock.lab.diagram import diagram_page

__all__ = ["diagram_page"]
