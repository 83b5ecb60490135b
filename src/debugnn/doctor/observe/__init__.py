"""What the doctor measures in a training. It compares no measurement with a threshold.

observer            the loop's calls, turned into evidence by the modules below
gatherer            what is brought into the evidence at a report
watched_training    the model, the optimiser, the loss function, and what is known of them
hooks               what happens between two steps: forward passes, gradients, updates
calls               how a batch becomes a call of the model; tensors in nested arguments
layout              along which axis samples lie, and how some of them are taken
devices, modes      GPUs that are waited for; training and evaluation mode, dropout
callers             the person's code that is running: its line, its names
module_state        what a model keeps in itself from one pass to the next
replica             the copy of the model that things are tried out on
forward_passes      how the model was called between two steps
losses, loss_jumps  the losses of the steps; those that stand out
layers              gradients, updates and activations at some steps
stale_gradients     gradients that nobody cleared
erased_gradients    gradients that are cleared between two backward passes
graph               tensors that outputs are learnt through and that the model does not list
rivals, opponents   other networks that are trained beside this one; critics: what their
                    losses ask of it where it judges what they make
buffer              copies of some batches, fingerprints and labels of more, in tensors that
                    grow, growing, until nothing new comes, known_samples
windows             whether validation windows overlap with training windows
validation          a copy of the model, evaluated on validation samples
sample_axis         finds that axis, and whether a sample's output depends on other
                    samples, by way of perturbation, influence, mixing
first_batch         the task, the loss function and the network before the first step,
                    by way of task, loss_function, architecture, operations, weights,
                    recurrence, broken_path
labels_among_inputs  labels that the model is called with
targets_among_inputs  copies of the target values that outputs are made from
parts               outputs that a loss compares with one target each
risk_sets           which samples a Cox partial likelihood compares an event with
volume              how a loss pulls at the change of volume that a flow gives
preparations        the loss of validation samples that are prepared otherwise
recoded             the same of validation samples whose categories get other numbers
trained_network     the network with the weights that it has at the end
alignment           whether targets lie where images have what they name
column_order        pairs of target values that come in both orders in the training alone
data                the samples and how validation samples differ, by way of samples,
                    simple_models; how samples change in the training, drift
graph_batches       where the edges of a batch of graphs lie
sequences           whether outputs of a sequence see what they are to name, by way of
                    scored_symbols
optimizer           what the optimiser holds of the model
outcome             how well it went
own_loss            how well by its own loss function, beside constants and simple models
latent              whether outputs of a model that draws noise depend on input and noise
pairing             whether outputs belong to their own samples
"""
