"""Recorded observations of any format, streamed: LeRobot data sets, zarr buffers, HDF5, RLBench trees, our demonstrations.

Needs: the format's own package, imported when such data is opened. Not here: what a policy makes of them.
"""

from envs.recorded.observations import RecordedObservations
from envs.recorded.opening import open_recorded

__all__ = ["RecordedObservations", "open_recorded"]
