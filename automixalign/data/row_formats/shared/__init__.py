"""What row formats share: typed values, dialogues, prompts within sides, known layouts."""
