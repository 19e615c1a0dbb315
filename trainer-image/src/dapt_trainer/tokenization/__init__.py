"""A tokenizer that grows by the domain's words, and the rows of the model's matrices that belong to them."""
