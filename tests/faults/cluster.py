"""A Ray cluster of two workers on this machine, for trials."""

from collections.abc import Sequence

from tests.faults.world import World, run_main


def on_cluster(world: World, arguments: Sequence[str]) -> int:
    """The command on a cluster that lives as long as its process."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **memory)
        return run_main(world, [cluster.address if word == "auto" else word for word in arguments])
    finally:
        cluster.shutdown()
