"""The demo of mcbench: a fleet on three real Debian hosts of this machine (``make demo SYSTEM=mcbench``; docs/lab.md).

Its images are the lab's own small ones, from the lab's registry; so the hosts are as small, as only a lab or dev may be.
"""

from tests.lab.topology import address, declare, registry

_slot_registry = registry()
_small = {"cpus": 1.0, "memory_mb": 256}
_settings = {
    "docker_source": "distribution",
    "docker_registries": {
        _slot_registry.name: {"username": "demo", "password": "env:REGISTRY_PASSWORD", "ca": _slot_registry.ca},
    },
    "mcbench_registry": _slot_registry.name,
    "mcbench_version": "v1.0.0",
    "mcbench_postgres_image": f"{_slot_registry.name}/postgres:16",
    "mcbench_redis_image": f"{_slot_registry.name}/redis:7",
    "mcbench_object_image": f"{_slot_registry.name}/s3:1",
    "mcbench_minecraft_server_image": f"{_slot_registry.name}/mc-bench-minecraft-server:1.0.0",
    "mcbench_minecraft_builder_image": f"{_slot_registry.name}/mc-bench-builder-runner:1.0.0",
    "mcbench_postgres_host": address(21),
    "mcbench_redis_host": address(21),
    "mcbench_object_store_dsn": f"{address(21)}:9000",
    "mcbench_cors_allowed_origin": "https://frontend.mcbench.example.test",
    "mcbench_openai_api_key": "env:MCBENCH_OPENAI_API_KEY",
    "mcbench_allow_small": True,
    "mcbench_limits": {
        name: _small
        for name in ("postgres", "redis", "object", "api", "admin-api", "admin-flower", "scheduler", "worker", "admin-worker",
                     "render-worker", "server-worker")
    },
    "mcbench_settle_seconds": 2,
    "mcbench_web_drain_seconds": 20,
    "mcbench_task_drain_seconds": 120,
}  # fmt: skip

_front = declare(
    "bench1", 21, "bookworm",
    mcbench_api_domain="api.mcbench.example.test",
    mcbench_admin_domain="admin.mcbench.example.test",
    mcbench_flower_domain="flower.mcbench.example.test",
    mcbench_internal_address=address(21),
    mcbench_internal_networks=[f"{address(number)}/32" for number in (22, 23)],
    **_settings,
)  # fmt: skip
_workers = declare("bench2", 22, "trixie", **_settings)
_games = declare("bench3", 23, "bookworm", **_settings)

lab = [_front, _workers, _games]
mcbench = [_front, _workers, _games]
mcbench_infra = [_front]
mcbench_api = [_front]
mcbench_admin = [_front]
mcbench_scheduler = [_front]
mcbench_worker = [_workers]
mcbench_admin_worker = [_workers]
mcbench_render = [_workers]
mcbench_server = [_games]

_stranger = declare("stranger", 10, "bookworm")
