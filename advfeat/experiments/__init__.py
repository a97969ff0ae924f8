"""Experiments of the paper: each file says which steps it needs (``plan``) and what they show (``report``)."""
