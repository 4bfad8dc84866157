"""What routing costs a server, against a client that names its adapter and against a proxy in front."""
