"""What is looked at in a training: the loop, the network, the loss, the data, the outcome."""
