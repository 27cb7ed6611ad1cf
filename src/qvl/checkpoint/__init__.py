"""A checkpoint folder without torch: its files, headers, names and quantisation; checking, converting and writing.

What its tensors become on a device is for models.
"""
