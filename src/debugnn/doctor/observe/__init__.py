"""What the doctor measures in a training. It compares no measurement with a threshold.

observer         hooks and the loop's calls, turned into evidence by the modules below
calls            how a batch becomes a call of the model; tensors in nested arguments
layout           along which axis samples lie, and how some of them are taken
devices, modes   GPUs that are waited for; training and evaluation mode, dropout
replica          the copy of the model that things are tried out on
forward_passes   how the model was called between two steps
losses           the losses of the steps
layers           gradients, updates and activations at some steps
stale_gradients  gradients that nobody cleared
buffer           copies of some batches, fingerprints and labels of all
mixing           finds that axis, and whether a sample's output depends on other samples
first_batch      the task, the loss function and the network before the first step, by way of
                   task, loss_function, architecture, operations, weights
data             the samples and how validation samples differ, by way of samples, simple_models
optimizer        what the optimiser holds of the model
outcome          how well it went
"""
