"""The operator's web page: what the cluster does this second, where it is hot, and orders to its balancer."""
