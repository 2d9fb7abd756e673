"""The two apps of federated learning under Flower: the server's and the client's."""
