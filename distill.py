"""Launch script: `accelerate launch distill.py [stage] [--config configs/<task>.yaml] [--flags]`."""

from distill.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
