"""Where each thing of the operator's application is, for the server and its clients."""

EXPERTS = "/admin/experts"
REBALANCE = "/admin/experts/rebalance"
PIN = "/admin/experts/{layer_id}/{logical_id}/pin"
BALANCER = "/admin/balancer"
