"""The learner on torch: `PFPOTrainer` around TRL's GRPOTrainer, and the training stages of a round."""
