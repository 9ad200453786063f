"""The safety filter: what of people's questions and of the model's replies is not let through.

Two kinds of checks stand side by side, rules (`rules`) and text classifiers (`classifier`), as a file says (`config`).
`screen` runs them over one reply while it is written, and shows nothing that could still become what is forbidden.
"""
