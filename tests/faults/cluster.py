"""A Ray cluster of two workers on this machine, for trials."""

from collections.abc import Sequence

from tests.faults.world import World, run_main


def on_cluster(world: World, arguments: Sequence[str]) -> int:
    """The command on a cluster that lives as long as its process."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    return run_main(world, [address if word == "auto" else word for word in arguments])
