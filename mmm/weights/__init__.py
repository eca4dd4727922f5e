"""Reading and writing of weights, in run folders and in the formats of other libraries."""
