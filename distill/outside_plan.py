"""`split` under the path that scripts of before know; it lives in envs.recorded.splitting."""

from envs.recorded.splitting import split

__all__ = ["split"]
