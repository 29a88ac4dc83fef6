"""Pictures of a run as one HTML file that needs nothing else.

``collect`` reads what the run left, ``charts`` and ``maps`` draw it as SVG, ``page`` puts the page together.
"""
