"""How good generated images are: features once, by a frozen network, and metrics as pure functions of them."""
