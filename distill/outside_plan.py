"""`split` under its earlier path, for existing scripts; it is defined in envs.recorded.splitting."""

from envs.recorded.splitting import split

__all__ = ["split"]
