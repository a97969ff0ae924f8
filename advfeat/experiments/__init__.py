"""Experiments of the paper: each file declares the stages it needs (``plan``) and what they show (``report``)."""
