"""The operator's HTTP application: what the expert tier does, and orders to its balancer. Off the public port."""
