"""Runs a rank of the tests: the real worker with another map of stages."""

from __future__ import annotations

from dapt_trainer.worker import end, main

if __name__ == "__main__":
    end(main(modules={"publish": "fake_stage"}))
