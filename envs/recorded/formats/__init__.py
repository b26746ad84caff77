"""One reader per format: LeRobot data sets, zarr replay buffers, HDF5, RLBench trees, our own demonstrations.

Needs: the format's own package, imported when such data is opened. Not here: what holds for all formats (envs/recorded/*.py).
"""
