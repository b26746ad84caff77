"""flow2one's embedded tasks as LeRobot environments. LeRobot imports this package by its name, which registers them."""

from lerobot_env_flow2one.configuration_flow2one import Flow2OneEnvConfig

__all__ = ["Flow2OneEnvConfig"]
