"""Cell types from marker genes, with evidence and abstention; the ontology that both training and evaluation use."""
