"""Distillation: a student learns from a teacher's distribution over classes beside the targets."""
