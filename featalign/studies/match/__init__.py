"""Which features of A are features of B, which are nobody else's? Two or more dictionaries, with their nulls."""
