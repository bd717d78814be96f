"""One command to the answer: look at a file, plan runs within limits, do them, ship the best model.

May import every other package: it does what a person does with the other commands.
"""
