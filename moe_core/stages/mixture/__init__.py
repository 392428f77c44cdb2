"""The mixture: bundle, promotion, embeddings."""
