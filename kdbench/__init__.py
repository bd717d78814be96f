"""kdbench: which small model should I ship, and how was it made?"""

__version__ = "0.1.0"
