from mc_bench.celery import app

__all__ = ["app"]
