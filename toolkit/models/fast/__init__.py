"""Training steps that leave out what cannot change their result: padding, and positions without loss.

Four parts, each of use by itself: `packing` runs the rows of a batch through the layers without
their padding, and a beginning that several of them share once; `attention` keeps such rows apart;
`head` scores the positions that have a label, and makes their gradient at once; `lora` adds an
adapter's update in place. `switch` puts them into a model that PEFT and TRL have made ready.
"""
