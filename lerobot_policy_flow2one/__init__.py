"""flow2one's one-step students as a LeRobot policy. LeRobot imports this package by its name, which registers the policy."""

from lerobot_policy_flow2one.configuration_flow2one import Flow2OneConfig

__all__ = ["Flow2OneConfig"]
